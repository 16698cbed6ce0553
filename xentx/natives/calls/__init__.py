"""What the records call. Each module imports its library and is imported by `Native.load`."""
