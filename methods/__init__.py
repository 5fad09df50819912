"""The methods: one file each, found by scanning this folder. Nothing is registered by hand."""
