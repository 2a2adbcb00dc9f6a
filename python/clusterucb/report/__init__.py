"""Internal. Reports a run's results: files, tables, notebook pages, terminal output and exports."""
