"""AutoFLIP quickstart: a Flower app on MNIST digits, two classes a node."""
