"""What several tests share: models, pools, jobs, recorded searches. No test imports a test."""
