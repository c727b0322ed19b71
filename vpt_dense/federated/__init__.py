"""Federated training, on Flower: clients keep their images, what was tuned alone moves."""
