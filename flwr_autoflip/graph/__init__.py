"""From a model to a smaller one and back, without Flower.

``trace`` (:mod:`.tracing`) finds a model's :class:`.layout.Layout`: which slices of
which tensors are one unit. A :class:`.plan.Plan` says which units are kept; ``shrink``
builds the model of those, ``expand`` puts what it learned back into full shape.
:mod:`.codec` makes bytes of layouts and plans, :mod:`.pack` one flat array of values,
:mod:`.save` a file of a pruned model.
"""
