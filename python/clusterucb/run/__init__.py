"""Internal. Read and write the files that outlive a session: run folders, ledgers, stores, features and the cache."""
