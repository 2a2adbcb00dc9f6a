"""Internal. What lies on the disk between sessions: run folders, ledgers, stores, features and the cache."""
