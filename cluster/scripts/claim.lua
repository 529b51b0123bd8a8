-- node, epoch, id, name
-- -> {number of the event, the clock of the nodes that users have left}; "held" by another node; "unknown": no such user; "stale": the lease has run out
local node, id, name = ARGV[1], ARGV[3], ARGV[4]
if redis.call('HGET', p .. 'epochs', node) ~= ARGV[2] then
    return 'stale'
end
if redis.call('HGET', p .. 'users', id) ~= name then
    return 'unknown'
end
local held = holder(id)
if held and held ~= node then
    return 'held'
end
return {put_online(node, id, name), redis.call('GET', p .. 'clock') or '0'}
