"""Internal. What was found: files, tables, pages and exports."""
