"""The decode loop: continuous batching of requests of all kinds. Read decoder, request, running_batch, step in this order."""
