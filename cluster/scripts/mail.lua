-- messages kept for each pair, messages that may wait for one user, row, node that the receiver is leaving or ""
-- -> its number of messages, which all wait now; or fewer: how many would fit; "online": the receiver is; "unknown": the receiver
-- or the sender has been removed
local row = ARGV[3]
local id, sender, receiver, count = parse(row)
if row_of(pair_of(sender, receiver), id) then -- a repeated request
    return count
end
local node = holder(receiver)
if node and node ~= ARGV[4] then
    return 'online'
end
if redis.call('HEXISTS', p .. 'users', sender) == 0 or redis.call('HEXISTS', p .. 'users', receiver) == 0 then
    return 'unknown'
end
local room = ARGV[2] - (redis.call('HGET', p .. 'mail-sizes', receiver) or 0)
if room < count then
    return math.max(0, room)
end
trim(keep(row, count), tonumber(ARGV[1]))
return count
