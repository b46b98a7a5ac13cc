"""What is measured on the device for the cost model."""
