"""What a long command needs of the machine: whole files, threads, processes, signals, seeds, timing, progress."""
