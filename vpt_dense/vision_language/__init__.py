"""Classes that are known by texts: CLIP's classifier and heads. Their registry imports them."""
