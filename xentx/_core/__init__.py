"""The mathematics of xentx, written once against the Array API standard.

Each operation is a module of pure functions that take the namespace ``xp`` first::

    forward(xp, spec, *arrays) -> (value, residuals)
    pullback(xp, spec, arrays, residuals, cotangent, needs) -> gradients, one for each array
    jvp(xp, spec, arrays, residuals, tangents) -> tangent

They branch on shapes, dtypes and the options in `spec`, and never on values. Therefore they can be
traced by ``jax.jit``, ``tf.function`` and ``torch.compile``. Each one is also differentiable: a
framework that differentiates ``pullback`` (and computes the residuals again) gets correct
derivatives of every order. No framework is named here.

Read `_softmax` first, which has the formula of a row. `cross_entropy` uses it. `linear` is not an
operation, but an algorithm over tiles of its arrays. `partials` has the computations for blocks of
the classes.
"""
