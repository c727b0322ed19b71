"""The library for plain PyTorch: torch, timm, safetensors and NumPy are all that it needs."""
