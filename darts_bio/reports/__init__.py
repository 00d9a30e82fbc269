"""Reports: pages and tables in Markdown, made from run folders and registries."""
