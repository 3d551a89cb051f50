"""From a branch's file or query into the sealed store, checked against the contract."""
