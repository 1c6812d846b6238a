"""How the embedded model was made: training and its card; only a maintainer runs this."""
