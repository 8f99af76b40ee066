"""What every layer uses: errors, limits, the clock and secret bytes. No I/O."""
