"""Everything that protects: keys, field encryption, noise, accounting, the ledger and the one door."""
