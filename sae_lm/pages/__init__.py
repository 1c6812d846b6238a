"""Write what a person looks at: the report's page, the page of latents, figures, and tables for a terminal."""
