"""The coordinator: it asks, and never sees a customer."""
