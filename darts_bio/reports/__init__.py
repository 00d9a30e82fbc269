"""Reports: pages and tables in Markdown, made of what runs and registries hold."""
