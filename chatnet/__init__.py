"""What clients and servers both need of a network: addresses as people write them, and pauses between attempts."""
