"""The catalogue of teachers, and one file for each place that their networks and weights come from."""
