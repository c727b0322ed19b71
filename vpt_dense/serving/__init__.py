"""``vpt-dense serve``: many tasks on one frozen backbone over HTTP."""
