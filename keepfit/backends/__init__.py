"""What keepfit talks to: Redis (clients, scripts, keys), blob storage, and calls gathered into batches."""
