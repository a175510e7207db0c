"""What others see of the work: rows in Flower, logs."""
