"""Language models: found by name, loaded, hooked, and run up to the last hook asked for."""
