"""Everything on one machine: `keepfit up` and `keepfit demo`."""
