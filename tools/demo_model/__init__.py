"""Draw the data for, train and measure the tiny vision-language model that mlx-magic bundles."""
