"""A branch: the vault (data, keys, no network) and the courier (network, no data, no keys)."""
