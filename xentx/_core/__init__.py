"""The mathematics of xentx, written once against the Array API standard.

Each operation is a module of pure functions that take the namespace ``xp`` first::

    forward(xp, spec, *arrays) -> (value, residuals)
    pullback(xp, spec, arrays, residuals, cotangent, needs) -> gradients, one for each array
    jvp(xp, spec, arrays, residuals, tangents) -> tangent

They branch on shapes, dtypes and the options in `spec`, never on values, so they trace under
``jax.jit``, ``tf.function`` and ``torch.compile``. Each one is also a plain differentiable
expression: a framework that differentiates ``pullback`` itself (with residuals that it recomputed)
gets correct derivatives of every order. No framework is named here.

Start with `_softmax`, which holds the one row formula; `cross_entropy` is built on it. `linear` is
no operation but an algorithm over tiles of its arrays, and `partials` what it does with blocks of
the classes.
"""
