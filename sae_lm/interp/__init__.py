"""An SAE at work in the language model: spliced into it, and searched for what its latents fire on."""
