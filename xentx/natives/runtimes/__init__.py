"""The frameworks behind `xentx.natives.Runtime`. Imported by `runtime_of` and no one else."""
