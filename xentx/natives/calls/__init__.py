"""The functions that the records call. `Native.load` imports these modules, and so a library."""
