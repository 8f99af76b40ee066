"""Where the outside comes in: clocks, HTTP, TEE devices, collateral services, model stores."""
