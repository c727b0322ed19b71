"""What a run needs beside the model: distributed CPU processes and mixed precision."""
