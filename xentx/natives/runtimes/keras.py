"""Keras: the runtime of the backend that it selected when it was imported."""

import keras

from xentx.natives._runtime import Runtime, runtime_of

RUNTIME: Runtime = runtime_of(keras.backend.backend())
