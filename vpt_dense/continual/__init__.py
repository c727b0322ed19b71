"""Class-incremental learning: classes that come in steps, on one frozen backbone."""
