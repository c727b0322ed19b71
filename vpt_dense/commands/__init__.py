"""The tools, one module each; ``vpt-dense NAME`` and ``python tools/NAME.py`` are the same.

Each has ``main(argv=None)``; None: what the command line says.
"""
