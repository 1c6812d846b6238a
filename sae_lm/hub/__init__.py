"""The Hugging Face hub: names pinned to commits, files fetched and sent, failures as one sentence."""
