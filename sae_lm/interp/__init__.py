"""An SAE at work in the language model: spliced in, steered, attributed to, and searched for what its latents fire on."""
