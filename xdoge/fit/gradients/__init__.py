"""The gradient engine. It forms inner products of the sources' gradients in the backward pass that trains the proxy."""
