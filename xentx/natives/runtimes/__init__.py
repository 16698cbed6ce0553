"""Implementations of `xentx.natives.Runtime`. Only `runtime_of` imports them."""
