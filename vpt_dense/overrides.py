"""Tells whether methods are overridden: shortcuts are used only where they are not."""

import inspect


def are_of(owner: type, thing: object, *names: str) -> bool:
    """Tell whether methods of an object are those that a class has or inherits.

    Args:
        owner: The class, of which the object is an instance.
        thing: The object.
        *names: Of the methods.

    Returns:
        False if a subclass or the object itself overrides one of them.
    """
    own = vars(thing)
    return all(
        name not in own
        and inspect.getattr_static(type(thing), name) is inspect.getattr_static(owner, name)
        for name in names
    )
