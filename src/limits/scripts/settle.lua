-- What follows the outcome of attempts: a list of operations, each three arguments and its keys in order.
-- ARGV: every, then operation, argument, argument.
local every, key = tonumber(ARGV[1]), 0
local function next_key()
  key = key + 1
  return KEYS[key]
end
for at = 2, #ARGV, 3 do
  local operation, argument, other = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if operation == 'refund' or operation == 'withdraw' then
    local account = read(next_key())
    if account.exists and (argument == '0' or account.generation == tonumber(argument)) then
      account.failures = math.max(account.failures - 1, 0)
      if operation == 'withdraw' and account.failures == 0 then
        redis.call('DEL', account.key)
      else
        write(account, every)
      end
    end
  elseif operation == 'unname' then
    redis.call('ZREM', next_key(), argument)
  elseif operation == 'reset' then
    local account, prefix, names = read(next_key()), read(next_key()), next_key()
    if account.exists then
      redis.call('DEL', account.key)
      if prefix.exists then
        prefix.failures = math.max(prefix.failures - account.failures, 0)
        write(prefix, every)
      end
      redis.call('ZREM', names, argument)
    end
  elseif operation == 'forget' then
    redis.call('DEL', next_key())
  elseif operation == 'network' then
    local networks, kept = next_key(), ''
    each_network(networks, function(network, seen, record)
      if network ~= argument and math.abs(now - seen * 1000) < tonumber(other) then kept = kept .. record end
    end)
    kept = string.sub(kept, -15 * NETWORK) .. struct.pack('>c8I4', argument, math.floor(now / 1000))
    redis.call('SET', networks, kept, 'PX', other)
  end
end
return {now}
