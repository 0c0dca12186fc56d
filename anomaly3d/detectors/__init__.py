"""What every method offers: findings on a batch; one method a file."""
