"""Memory, latency and throughput."""
