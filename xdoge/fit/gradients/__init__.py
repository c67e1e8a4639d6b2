"""The gradient engine: inner products of the sources' gradients from the backward pass that trains the proxy."""
