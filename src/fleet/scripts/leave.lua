-- A member ends. KEYS: its key, the index of members. ARGV: its id.
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
